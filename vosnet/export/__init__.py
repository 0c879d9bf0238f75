"""Files for people and other tools: masks, overlays, contact sheets, COCO run lengths, result folders."""
