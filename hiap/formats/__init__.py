"""Networks as files: ours (``store``), other people's (``export``), and a pretrained backbone to start from."""
