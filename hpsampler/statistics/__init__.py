"""A model's coefficients for DPM-Solver-v3: what they are, how they are measured, where they are kept."""
