"""Every strategy of distillation on three data sets: what each closes of the gap, side by side."""
