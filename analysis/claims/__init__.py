"""The ledger of what HiAP's paper states: ``python -m analysis.claims`` judges every claim and writes the verdicts."""
