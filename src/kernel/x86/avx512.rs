//! The bodies with AVX-512, on 512-bit registers where the compiler chooses them.

super::instances!(crate::kernel::Isa::Avx512, "avx512f,avx512bw,avx512dq,avx512vl");
