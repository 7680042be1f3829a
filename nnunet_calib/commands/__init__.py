"""The commands, a module each: what the user types, one call, what is printed. No computation of their own."""
