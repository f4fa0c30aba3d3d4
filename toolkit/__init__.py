"""The commands and what is behind them: recipes, data sets, training, quantization, validation, reports."""
