"""Pictures: one style and one ``save`` (``style``), and one module per kind of picture. Nothing is computed here."""
