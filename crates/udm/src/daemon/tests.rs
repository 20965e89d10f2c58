//! The daemon with a real engine.
