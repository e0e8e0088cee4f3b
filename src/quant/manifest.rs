//! `quantization.json`: the manifest at the root of every view, in zimage.swift's schema.
