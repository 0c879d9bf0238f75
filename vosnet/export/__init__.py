"""Results for people and other tools: overlays, contact sheets, COCO run lengths, result folders."""
