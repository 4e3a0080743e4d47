"""The types of tensors in GGUF files; the block formats among them are decoded by the op ``decode`` (kernels/numpy_decode.py)."""

from __future__ import annotations

from spectral_fast.kernels.numpy_decode import BLOCK_FORMATS

__all__ = ["BLOCK_FORMATS", "PLAIN", "TYPES"]

# tensor types: number -> name; PLAIN names with their dtype
PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"}
TYPES = dict(enumerate("F32 F16 Q4_0 Q4_1 Q4_2 Q4_3 Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K IQ2_XXS IQ2_XS IQ3_XXS IQ1_S IQ4_NL".split()))
TYPES |= dict(enumerate("IQ3_S IQ2_S IQ4_XS I8 I16 I32 I64 F64 IQ1_M BF16 Q4_0_4_4 Q4_0_4_8 Q4_0_8_8 TQ1_0 TQ2_0".split(), start=21))
TYPES |= dict(enumerate("IQ4_NL_4_4 IQ4_NL_4_8 IQ4_NL_8_8 MXFP4 NVFP4 Q1_0".split(), start=36))
