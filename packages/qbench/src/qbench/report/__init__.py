"""From results to numbers, verdicts, figures and pages."""
