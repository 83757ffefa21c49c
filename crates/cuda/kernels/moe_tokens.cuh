// Rows of tokens, grouped by expert, as the matrix products read them.
//
// An expert's rows stand in groups of 8, the last one filled up; the groups of expert e follow those of e - 1. Of an expert
// with G groups, whose first is F, panel p (columns 64 p .. 64 p + 63) of group g is the 1,024 bytes at
// 1024 (F * panels + p G + g): row r at 128 r, its 16-byte piece c at 16 (c ^ r), which is wgmma's 128-byte swizzle.
#pragma once
#include <cstdint>

constexpr uint32_t kGroupBytes = 1024;
constexpr uint32_t kMaxExperts = 256;
