"""The command `reso`, and the main functions of the scripts of a checkout."""
