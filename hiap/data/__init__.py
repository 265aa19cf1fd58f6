"""Images: one file per embedded or downloaded data set, one loader for all."""
