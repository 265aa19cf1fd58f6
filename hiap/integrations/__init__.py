"""``hiap.Pruner`` in other people's trainers, one thin callback each; the packages are extras (`make integrations`)."""
