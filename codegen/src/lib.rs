//! Cranelift code generation for vitc plans.
