// llama.cpp's quantizers on one thread: GB/s of source, counted as bf16. `scripts/bench` builds and calls it.
//   ggml_quantize ROWS COLUMNS SECONDS
// Each takes weights in f32, the faster way for them, and keeps them in the caches as ours are.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "ggml.h"

int main(int argc, char ** argv) {
    if (argc != 4) return std::fprintf(stderr, "usage: ggml_quantize ROWS COLUMNS SECONDS\n"), 2;
    const int64_t rows = std::atoll(argv[1]), cols = std::atoll(argv[2]);
    const double least = std::atof(argv[3]);
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0.0f, 0.02f);
    std::vector<float> source(rows * cols);
    for (float & weight : source) weight = normal(random);
    for (ggml_type type : {GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q8_0, GGML_TYPE_MXFP4}) {
        std::vector<uint8_t> out(ggml_row_size(type, cols) * rows);
        ggml_quantize_init(type);
        const auto started = std::chrono::steady_clock::now();
        double taken = 0, turns = 0;
        while (taken < least) {
            ggml_quantize_chunk(type, source.data(), out.data(), 0, rows, cols, nullptr);
            taken = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
            ++turns;
        }
        std::printf("{\"case\": \"%s\", \"value\": %.3f}\n", ggml_type_name(type), 2.0 * rows * cols * turns / taken / 1e9);
    }
}
