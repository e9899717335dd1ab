"""What makes the method's output usable: placement, composite, files and folders, progress, sheets."""
