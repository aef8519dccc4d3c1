"""What messages carry: bytes through django-storages, who may see them, and links that hold their own permission."""
