//! The bodies with AVX2. `fma` is left out on purpose: nothing may contract.

super::instances!(crate::kernel::Isa::Avx2, "avx2");
