"""What lies on the disk: names, photographs and masks as people see them, files written whole."""
