"""The commands, one module each: arguments, one call, printed results. They compute nothing themselves."""
