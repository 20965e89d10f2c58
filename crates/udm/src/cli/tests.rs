//! The command line's grammar, and what is generated from it.
