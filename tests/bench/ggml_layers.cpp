// Quantized products of ggml, as `quantfs bench layers` measures ours: one input against a set of matrices
// that no cache holds (GB/s of quantized bytes), and batches (GFLOP/s). One JSON object a line.
//
//     ggml_layers ROWS COLUMNS SET_BYTES TURNS THREADS INPUTS[,INPUTS...]
//
// Each type is measured in ggml's plain layout and, where this CPU has one for it, repacked as llama.cpp does
// when it loads a model. A product is compared with f64 arithmetic on the decoded weights before it is timed.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t PATTERN = 64;    // rows that are quantized; a matrix repeats them
constexpr double TURN = 0.05;      // seconds that a turn lasts at least
constexpr double TOLERANCE = 0.05; // of the typical output: activations are quantized

struct Args {
    int64_t rows, cols;
    size_t set;
    int turns, threads;
    std::vector<int64_t> inputs;
};

[[noreturn]] void fail(const std::string & why) {
    std::fprintf(stderr, "ggml_layers: %s\n", why.c_str());
    std::exit(1);
}

std::vector<float> normal(size_t count, float size) {
    std::mt19937 random(1);
    std::normal_distribution<float> draw(0.0f, size);
    std::vector<float> values(count);
    for (float & value : values) value = draw(random);
    return values;
}

// The buffer type of this CPU's repacked layouts; null where there is none.
ggml_backend_buffer_type_t repacked(ggml_backend_dev_t cpu) {
    using Extra = ggml_backend_buffer_type_t * (*) (ggml_backend_dev_t);
    auto reg = ggml_backend_dev_backend_reg(cpu);
    auto extra = (Extra) ggml_backend_reg_get_proc_address(reg, "ggml_backend_dev_get_extra_bufts");
    for (auto type = extra ? extra(cpu) : nullptr; type && *type; ++type) {
        if (std::string(ggml_backend_buft_name(*type)) == "CPU_REPACK") return *type;
    }
    return nullptr;
}

struct Matrices {
    ggml_context * context;
    ggml_backend_buffer_t buffer;
    std::vector<ggml_tensor *> copies;
};

// As many copies as fill the set, in memory of their own. None where the layout does not take the type.
Matrices load(const Args & args, ggml_type type, ggml_backend_buffer_type_t layout, ggml_backend_dev_t cpu,
              const std::vector<uint8_t> & pattern) {
    const size_t bytes = ggml_row_size(type, args.cols) * args.rows;
    const size_t count = (args.set + bytes - 1) / bytes;
    Matrices made{ggml_init({(count + 3) * ggml_tensor_overhead(), nullptr, true}), nullptr, {}};
    for (size_t i = 0; i < count; i++) made.copies.push_back(ggml_new_tensor_2d(made.context, type, args.cols, args.rows));
    made.buffer = ggml_backend_alloc_ctx_tensors_from_buft(made.context, layout);
    if (!made.buffer) fail("no memory for the matrices");
    auto probe = ggml_mul_mat(made.context, made.copies[0], ggml_new_tensor_2d(made.context, GGML_TYPE_F32, args.cols, 1));
    if (!ggml_backend_dev_supports_op(cpu, probe)) {
        made.copies.clear();
        return made;
    }
    std::vector<uint8_t> whole;
    for (int64_t row = 0; row < args.rows; row += PATTERN) whole.insert(whole.end(), pattern.begin(), pattern.end());
    for (auto copy : made.copies) ggml_backend_tensor_set(copy, whole.data(), 0, bytes);
    return made;
}

void unload(Matrices & matrices) {
    ggml_backend_buffer_free(matrices.buffer);
    ggml_free(matrices.context);
}

// A product against f64 arithmetic.
void check(const Args & args, const std::string & name, ggml_type type, const std::vector<uint8_t> & pattern,
           const std::vector<float> & x, int64_t inputs, ggml_tensor * y) {
    std::vector<float> row(args.cols);
    const int64_t samples[][2] = {{0, 0}, {17, inputs - 1}, {PATTERN - 1, inputs / 2}, {args.rows - 1, inputs - 1}};
    for (auto [r, input] : samples) {
        ggml_get_type_traits(type)->to_float(pattern.data() + (r % PATTERN) * ggml_row_size(type, args.cols), row.data(), args.cols);
        double sum = 0, square = 0;
        for (int64_t c = 0; c < args.cols; c++) {
            const double term = (double) row[c] * x[input * args.cols + c];
            sum += term;
            square += term * term;
        }
        float got;
        ggml_backend_tensor_get(y, &got, (input * args.rows + r) * sizeof(float), sizeof(float));
        if (!(std::fabs(got - sum) <= TOLERANCE * std::sqrt(square))) {
            fail(name + ": row " + std::to_string(r) + " is " + std::to_string(got) + ", not " + std::to_string(sum));
        }
    }
}

// Graphs of products with one batch of inputs: a graph of all copies for one input, one each for several.
struct Products {
    ggml_context * context;
    ggml_backend_buffer_t buffer;
    std::vector<float> x;
    std::vector<ggml_cgraph *> graphs;
    size_t each;
    ggml_tensor * y; // all products write to the same place
};

Products build(const Args & args, const Matrices & matrices, ggml_backend_t backend, int64_t inputs) {
    const size_t count = matrices.copies.size(), graphs = inputs == 1 ? 1 : count, each = count / graphs;
    const size_t nodes = 2 * each + 8, room = graphs * ggml_graph_overhead_custom(nodes, false) + (count + 1) * ggml_tensor_overhead();
    Products made{ggml_init({room, nullptr, true}), nullptr, normal(inputs * args.cols, 1.0f), {}, each, nullptr};
    auto input = ggml_new_tensor_2d(made.context, GGML_TYPE_F32, args.cols, inputs);
    const size_t bytes = (args.cols + args.rows) * inputs * sizeof(float);
    made.buffer = ggml_backend_alloc_buffer(backend, bytes + 2 * ggml_backend_get_alignment(backend));
    if (!made.buffer) fail("no memory for inputs and outputs");
    auto place = ggml_tallocr_new(made.buffer);
    ggml_tallocr_alloc(&place, input);
    ggml_backend_tensor_set(input, made.x.data(), 0, made.x.size() * sizeof(float));
    for (size_t g = 0; g < graphs; g++) {
        made.graphs.push_back(ggml_new_graph_custom(made.context, nodes, false));
        for (size_t i = 0; i < each; i++) {
            made.y = ggml_mul_mat(made.context, matrices.copies[g * each + i], input);
            auto same_place = place;
            ggml_tallocr_alloc(&same_place, made.y);
            ggml_build_forward_expand(made.graphs.back(), made.y);
        }
    }
    return made;
}

// Billions of `work` a second: the median of the turns. A call does one graph, the next one each time.
double median_rate(const Args & args, const Products & products, ggml_backend_t backend, double work) {
    std::vector<double> rates;
    for (size_t next = 0; (int) rates.size() < args.turns;) {
        const auto started = Clock::now();
        double done = 0, took = 0;
        while (took < TURN) {
            if (ggml_backend_graph_compute(backend, products.graphs[next]) != GGML_STATUS_SUCCESS) fail("a product failed");
            next = (next + 1) % products.graphs.size();
            done += work;
            took = std::chrono::duration<double>(Clock::now() - started).count();
        }
        rates.push_back(done / took / 1e9);
    }
    std::sort(rates.begin(), rates.end());
    return rates[rates.size() / 2];
}

void measure(const Args & args, const std::string & name, ggml_type type, const Matrices & matrices, ggml_backend_t backend,
             const std::vector<uint8_t> & pattern, int64_t inputs) {
    auto products = build(args, matrices, backend, inputs);
    if (ggml_backend_graph_compute(backend, products.graphs[0]) != GGML_STATUS_SUCCESS) fail(name + " failed");
    check(args, name, type, pattern, products.x, inputs, products.y);
    const double bytes = (double) ggml_row_size(type, args.cols) * args.rows, operations = 2.0 * args.rows * args.cols * inputs;
    const double rate = median_rate(args, products, backend, (inputs == 1 ? bytes : operations) * products.each);
    std::printf("{\"peer\": \"llama.cpp\", \"case\": \"%s\", \"bits\": %d, \"inputs\": %d, \"threads\": %d, \"value\": %.3f, \"unit\": \"%s\", \"bits_per_weight\": %g}\n",
                name.c_str(), type == GGML_TYPE_Q8_0 ? 8 : 4, (int) inputs, args.threads, rate, inputs == 1 ? "GB/s" : "GFLOP/s", 8.0 * bytes / ((double) args.rows * args.cols));
    std::fflush(stdout);
    ggml_backend_buffer_free(products.buffer);
    ggml_free(products.context);
}

Args parse(int argc, char ** argv) {
    if (argc != 7) fail("usage: ggml_layers ROWS COLUMNS SET_BYTES TURNS THREADS INPUTS[,INPUTS...]");
    Args args{std::atoll(argv[1]), std::atoll(argv[2]), (size_t) std::atoll(argv[3]), std::atoi(argv[4]), std::atoi(argv[5]), {}};
    std::stringstream list(argv[6]);
    for (std::string item; std::getline(list, item, ',');) args.inputs.push_back(std::atoll(item.c_str()));
    if (args.rows % PATTERN || args.rows <= 0 || args.cols <= 0 || args.turns < 1 || args.threads < 1) fail("rows are a multiple of 64, the rest at least 1");
    return args;
}

} // namespace

int main(int argc, char ** argv) {
    const Args args = parse(argc, argv);
    ggml_log_set([](ggml_log_level level, const char * text, void *) { if (level >= GGML_LOG_LEVEL_WARN && level != GGML_LOG_LEVEL_CONT) std::fputs(text, stderr); }, nullptr);
    auto backend = ggml_backend_cpu_init();
    auto cpu = ggml_backend_get_device(backend);
    auto params = ggml_threadpool_params_default(args.threads);
    auto pool = ggml_threadpool_new(&params);
    ggml_backend_cpu_set_n_threads(backend, args.threads);
    ggml_backend_cpu_set_threadpool(backend, pool);
    const auto source = normal(PATTERN * args.cols, 0.02f);
    for (ggml_type type : {GGML_TYPE_Q4_0, GGML_TYPE_Q4_K, GGML_TYPE_Q8_0}) {
        std::vector<uint8_t> pattern(ggml_row_size(type, args.cols) * PATTERN);
        ggml_quantize_chunk(type, source.data(), pattern.data(), 0, PATTERN, args.cols, nullptr);
        for (auto layout : {ggml_backend_cpu_buffer_type(), repacked(cpu)}) {
            if (!layout) continue;
            auto matrices = load(args, type, layout, cpu, pattern);
            std::string name = ggml_type_name(type);
            name[0] = 'Q';
            if (layout != ggml_backend_cpu_buffer_type()) name += " repacked";
            for (int64_t inputs : args.inputs) {
                if (!matrices.copies.empty()) measure(args, name, type, matrices, backend, pattern, inputs);
            }
            unload(matrices);
        }
    }
    ggml_threadpool_free(pool);
    ggml_backend_free(backend);
}
