//! MXFP4 weights in the order in which the kernels read them.
