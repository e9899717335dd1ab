"""Numbers by which pictures are judged."""
