"""What HiAP's paper (arXiv 2603.12222 v1) says by its own numbers: recomputed from first principles, no run needed."""
