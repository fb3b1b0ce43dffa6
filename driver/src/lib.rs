//! The integer Vision Transformer compiler: library facade and command.
