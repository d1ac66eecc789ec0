"""Results as tables, figures and reports."""
