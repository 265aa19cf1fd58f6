"""Tables for print: one renderer (``render``), the tables of our runs (``ours``) and of HiAP's paper (``theirs``)."""
