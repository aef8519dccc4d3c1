"""Live frames to users' sockets. Knows users, not conversations: what a frame says is the pipeline's business."""
