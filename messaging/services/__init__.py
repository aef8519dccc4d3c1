"""What the product does, one idea per module. Every service takes its ports as arguments."""
