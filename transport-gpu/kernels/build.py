#!/usr/bin/env python3
"""Compiles copy.cu to copy.ptx with NVRTC: no GPU, no driver and no CUDA toolkit are needed.

    pip install --target /tmp/nvrtc nvidia-cuda-nvrtc-cu11==11.7.99
    python3 kernels/build.py /tmp/nvrtc

The library is this old so that the PTX is read by every driver that the crate accepts (11.7), and the architecture is
the oldest that it knows without a warning: drivers compile PTX for whatever GPU they find.
"""
import ctypes
import glob
import pathlib
import sys

here = pathlib.Path(__file__).parent
found = glob.glob(sys.argv[1] + "/nvidia/cuda_nvrtc/lib/libnvrtc.so*")
nvrtc = ctypes.CDLL(found[0])
program = ctypes.c_void_p()


def check(status):
    if status:
        size = ctypes.c_size_t()
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        sys.exit(f"nvrtc {status}: {log.value.decode()}")


source = (here / "copy.cu").read_bytes()
check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"copy.cu", 0, None, None))
options = (ctypes.c_char_p * 1)(b"--gpu-architecture=compute_60")
check(nvrtc.nvrtcCompileProgram(program, len(options), options))
size = ctypes.c_size_t()
check(nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size)))
ptx = ctypes.create_string_buffer(size.value)
check(nvrtc.nvrtcGetPTX(program, ptx))
(here / "copy.ptx").write_bytes(ptx.value.rstrip(b"\n") + b"\n")
