"""What can only be measured on a machine with a GPU; DEVELOPERS.md says how to bring it there."""
