"""What our own runs say: comparisons at equal MACs, budgets, training costs, open points."""
