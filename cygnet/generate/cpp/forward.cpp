// The model's forward pass over the slots of a key/value cache, on a processor.
//
// One call takes M tokens, each with its slot and its position: the next token of every running
// request (decoding), stretches of prompts (prefill), or both. Between the layers' steps there is
// no Python, no allocation and no thread to be woken, which is most of what a small model's step
// costs elsewhere; each weight is read once for all tokens.
//
// Every number is computed in the same order whatever other tokens there are, so that the bits
// of an answer do not depend on its company.
//
// Arithmetic: matrices in bfloat16, float32, or 8 or 4 bits; products summed in float32; the
// residual stream, norms, rotations and softmax in float32. The inputs of products and the cache
// have the type T (bfloat16 or float32).

#include <utility>
#include <vector>

#include "attention.h"
#include "products.h"
#include "team.h"

// What Python hands over; `native.py` has the same fields.
extern "C" {
struct Layer {
    Matrix qkv, out, gate_up, down;
    const float *input_norm, *post_norm, *q_norm, *k_norm;  // the last two may be null
    void *keys, *values;  // (slots, key/value heads, max_len, head size) of T
};

struct Model {
    int64_t is_bf16;
    int64_t hidden_size, num_heads, num_kv_heads, head_size, intermediate_size, max_len;
    int64_t num_layers;
    float norm_epsilon, score_scale;
    const Layer* layers;
    const void* embeddings;  // (vocabulary, hidden size) of T
    const float* final_norm;
    const float *cosines, *sines;  // (max_len, head size / 2), of every position
    Matrix output;
};

struct Tokens {
    int64_t count;
    const int64_t *ids, *slots, *positions;  // (count)
    int64_t num_wanted;
    const int64_t* wanted;  // (num_wanted), the tokens behind which logits are asked for
    float* logits;          // (num_wanted, vocabulary)
};
}

namespace {

constexpr int QUERIES = 8;   // tokens whose queries read the same keys together
constexpr int FEW = 4;        // tokens
constexpr int TOGETHER = 64;  // tokens that one visit to a block of weights serves

float mean_square(const float* x, int64_t size) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < size; i++) sum += x[i] * x[i];
    return sum / float(size);
}

template <class T>
void rms_norm(const float* x, const float* weight, int64_t size, float epsilon, T* out) {
    const float by = 1.0f / std::sqrt(mean_square(x, size) + epsilon);
    for (int64_t i = 0; i < size; i++) out[i] = rounded<T>(x[i] * by * weight[i]);
}

// Norm and rotate one head, in place.
void turn(float* head, const float* norm, int64_t size, float epsilon, const float* cosine,
          const float* sine) {
    if (norm) rms_norm<float>(head, norm, size, epsilon, head);
    const int64_t half = size / 2;
    for (int64_t i = 0; i < half; i++) {
        const float a = head[i], b = head[i + half];
        head[i] = a * cosine[i] - b * sine[i];
        head[i + half] = b * cosine[i] + a * sine[i];
    }
}

template <class T>
class Pass {
   public:
    Pass(const Model& model, const Tokens& tokens, int threads)
        : model(model), tokens(tokens), threads(threads), M(tokens.count), D(model.hidden_size),
          H(model.head_size) {
        static thread_local std::vector<float> memory;
        const int64_t queries = model.num_heads * H, kv = model.num_kv_heads * H;
        const int64_t widest = std::max({D, queries, model.intermediate_size});
        group = model.num_heads / model.num_kv_heads;
        scores_stride = (model.max_len + BLOCK - 1) / BLOCK * BLOCK;
        scratch = (QUERIES + 1) * group * scores_stride + std::max<int64_t>(group, 2 * BLOCK) * H +
                  2 * TOGETHER * BLOCK + FEW * D;
        for (int64_t i = 0; i < M; i++) {
            const bool is_same = i && tokens.slots[i] == tokens.slots[i - 1];
            if (!is_same || i - runs.back().begin == QUERIES) runs.push_back({i, i});
            runs.back().end = i + 1;
            has_long_slots |= is_same;
        }
        const int64_t sizes[] = {M * D, M * (queries + 2 * kv), M * widest, M * widest,
                                 threads * scratch};
        int64_t total = 0;
        for (const int64_t size : sizes) total += size + LANES;
        if (int64_t(memory.size()) < total) memory.resize(total);
        float* at = memory.data();
        const auto take = [&](int64_t size) { return std::exchange(at, at + size + LANES); };
        residual = take(sizes[0]);
        qkv = take(sizes[1]);
        inputs = (T*)take(sizes[2]);
        inner = (T*)take(sizes[3]);
        scratches = take(sizes[4]);
    }

    void run() {
#pragma omp parallel num_threads(threads)
        {
            team.gather();
            embed();
            for (int64_t i = 0; i < model.num_layers; i++) {
                attention(model.layers[i]);
                feed_forward(model.layers[i]);
            }
            logits();
        }
    }

   private:
    // Tokens of one slot, their positions ascending.
    struct Run {
        int64_t begin, end;
    };

    float* own_scratch() const { return scratches + omp_get_thread_num() * scratch; }

    void embed() {
        team.share(M, [&](int64_t i) {
            const T* row = (const T*)model.embeddings + tokens.ids[i] * D;
            for (int64_t d = 0; d < D; d++) residual[i * D + d] = to_float(row[d]);
        });
    }

    // Return the normed residual stream. Of few tokens every thread makes its own, which takes
    // less time than to wait for each other.
    const T* norm(const float* weight) {
        const auto norm_to = [&](T* to, int64_t i) {
            rms_norm<T>(residual + i * D, weight, D, model.norm_epsilon, to + i * D);
        };
        if (M > FEW) {
            team.share(M, [&](int64_t i) { norm_to(inputs, i); });
            return inputs;
        }
        T* own = (T*)(own_scratch() + scratch - FEW * D);
        for (int64_t i = 0; i < M; i++) norm_to(own, i);
        return own;
    }

    // Share blocks of outputs, each for a part of the tokens that stays in the nearest memory.
    template <class Use>
    void share_blocks(int64_t outputs, int64_t count, Use use) {
        const int64_t blocks = (outputs + BLOCK - 1) / BLOCK;
        const int64_t parts = (count + TOGETHER - 1) / TOGETHER;
        team.share(parts * blocks, [&](int64_t i) {
            const int64_t begin = i / blocks * TOGETHER, first = i % blocks * BLOCK;
            use(first, std::min<int64_t>(BLOCK, outputs - first), begin,
                std::min<int64_t>(TOGETHER, count - begin));
        });
    }

    // Hand over each token's products: use(token, first output, number of outputs, products).
    template <class Use>
    void products(const Matrix& m, const T* x, int64_t count, Use use) {
        float* out = own_scratch();
        share_blocks(m.outputs, count, [&](auto first, auto width, auto begin, auto tokens) {
            multiply_block<T>(m, first, x + begin * m.inputs, tokens, out);
            for (int64_t i = 0; i < tokens; i++) use(begin + i, first, width, out + i * BLOCK);
        });
    }

    void add_product(const Matrix& m, const T* x) {
        products(m, x, M, [&](auto token, auto first, auto width, const float* out) {
            float* to = residual + token * D + first;
            for (int64_t o = 0; o < width; o++) to[o] += out[o];
        });
    }

    void copy_products(const Matrix& m, const T* x, int64_t count, float* to) {
        products(m, x, count, [&](auto token, auto first, auto width, const float* out) {
            std::memcpy(to + token * m.outputs + first, out, width * sizeof(float));
        });
    }

    void attention(const Layer& layer) {
        copy_products(layer.qkv, norm(layer.input_norm), M, qkv);
        const int64_t K = model.num_kv_heads;
        // Where no slot gets two tokens, none needs what another one places.
        if (has_long_slots)
            team.share(M * K, [&](int64_t i) { place(layer, i / K, i % K); });
        team.share_unequal(runs.size() * K, [&](int64_t i) {
            const Run run = runs[i / K];
            if (!has_long_slots) place(layer, run.begin, i % K);
            attend(layer, run, i % K);
        });
        add_product(layer.out, inner);
    }

    // Norm and rotate a token's queries and key of one key head; queries go to `inner`, key and
    // value to their slot.
    void place(const Layer& layer, int64_t token, int64_t head) const {
        const int64_t turns = tokens.positions[token] * H / 2;
        const float *cosine = model.cosines + turns, *sine = model.sines + turns;
        float* queries = qkv + token * layer.qkv.outputs + head * group * H;
        float* key = qkv + token * layer.qkv.outputs + (model.num_heads + head) * H;
        const float* value = key + model.num_kv_heads * H;
        T* to = query(token, head);
        for (int64_t g = 0; g < group; g++)
            turn(queries + g * H, layer.q_norm, H, model.norm_epsilon, cosine, sine);
        for (int64_t h = 0; h < group * H; h++) to[h] = rounded<T>(queries[h] * model.score_scale);
        turn(key, layer.k_norm, H, model.norm_epsilon, cosine, sine);
        const int64_t place = head_start(token, head) + tokens.positions[token] * H;
        T *keys = (T*)layer.keys + place, *values = (T*)layer.values + place;
        for (int64_t h = 0; h < H; h++) keys[h] = rounded<T>(key[h]);
        for (int64_t h = 0; h < H; h++) values[h] = rounded<T>(value[h]);
    }

    int64_t head_start(int64_t token, int64_t head) const {
        return (tokens.slots[token] * model.num_kv_heads + head) * model.max_len * H;
    }

    // Let the queries of a run's tokens, of one key head, read; the results take their places.
    void attend(const Layer& layer, Run run, int64_t head) {
        float* scores = own_scratch();  // (tokens of the run, group, scores_stride)
        float* rest = scores + QUERIES * group * scores_stride;
        T* weights = (T*)rest;  // (group, scores_stride)
        rest += group * scores_stride;
        score(layer, run, head, scores, (uint32_t*)rest);
        const T* values = (const T*)layer.values + head_start(run.begin, head);
        for (int64_t i = run.begin; i < run.end; i++, scores += group * scores_stride) {
            const int64_t length = tokens.positions[i] + 1;
            for (int64_t g = 0; g < group; g++)
                softmax(scores + g * scores_stride, length, weights + g * scores_stride);
            int64_t g = 0;
            for (; g + 4 <= group; g += 4) weigh_heads<4>(weights, g, values, length, rest);
            for (; g < group; g++) weigh_heads<1>(weights, g, values, length, rest);
            T* out = query(i, head);
            for (int64_t h = 0; h < group * H; h++) out[h] = rounded<T>(rest[h]);
        }
    }

    T* query(int64_t token, int64_t head) const {
        return inner + (token * model.num_heads + head * group) * H;
    }

    // Products of queries and keys, 16 keys at a time: (queries, scores_stride).
    void score(const Layer& layer, Run run, int64_t head, float* scores, uint32_t* memory) const {
        const int64_t length = tokens.positions[run.end - 1] + 1;
        const int64_t width = H * sizeof(T) / sizeof(uint32_t);
        uint32_t *columns = memory, *padded = memory + width * BLOCK;
        const auto* keys = (const uint32_t*)((const T*)layer.keys + head_start(run.begin, head));
        const auto* values = (const uint32_t*)((const T*)layer.values + head_start(run.begin, head));
        for (int64_t first = 0; first < length; first += BLOCK) {
            const uint32_t* rows = keys + first * width;
            if (first + BLOCK > length) {  // beyond stand no keys, or no memory
                std::memcpy(padded, rows, (length - first) * width * sizeof(uint32_t));
                rows = padded;
            }
            // The next keys, and the values that are read after all keys.
            for (int64_t at = 0; at < BLOCK * width; at += LANES) {
                __builtin_prefetch(keys + (first + BLOCK) * width + at);
                __builtin_prefetch(values + first * width + at, 0, 2);
            }
            transpose(rows, width, columns);
            for (int64_t i = run.begin; i < run.end; i++, scores += group * scores_stride)
                score_group(columns, width, query(i, head), scores + first);
            scores -= (run.end - run.begin) * group * scores_stride;
        }
    }

    void score_group(const uint32_t* columns, int64_t width, const T* queries, float* out) const {
        int64_t g = 0;
        for (; g + 4 <= group; g += 4)
            multiply_columns<4, T>(columns, width, queries + g * H, H, out + g * scores_stride, scores_stride);
        for (; g < group; g++)
            multiply_columns<1, T>(columns, width, queries + g * H, H, out + g * scores_stride, scores_stride);
    }

    void softmax(float* scores, int64_t length, T* weights) const {
        const float scale = 1.0f / std::sqrt(float(H));
        float highest = scores[0], sum = 0;
#pragma omp simd reduction(max : highest)
        for (int64_t i = 0; i < length; i++) highest = std::max(highest, scores[i]);
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < length; i++) {
            scores[i] = exponential((scores[i] - highest) * scale);
            sum += scores[i];
        }
        const float by = 1.0f / sum;
        for (int64_t i = 0; i < length; i++) weights[i] = rounded<T>(scores[i] * by);
    }

    template <int HEADS>
    void weigh_heads(const T* weights, int64_t g, const T* values, int64_t length,
                     float* out) const {
        weights += g * scores_stride;
        out += g * H;
        int64_t h = weigh_whole<HEADS>(weights, scores_stride, values, H, length, out);
        for (; h < H; h++)
            for (int head = 0; head < HEADS; head++) {
                float sum = 0;
                for (int64_t i = 0; i < length; i++)
                    sum += to_float(weights[head * scores_stride + i]) * to_float(values[i * H + h]);
                out[head * H + h] = sum;
            }
    }

    void feed_forward(const Layer& layer) {
        const T* x = norm(layer.post_norm);
        const int64_t F = model.intermediate_size;
        float *gate = own_scratch(), *up = gate + TOGETHER * BLOCK;
        share_blocks(F, M, [&](auto first, auto width, auto begin, auto tokens) {
            multiply_block<T>(layer.gate_up, first, x + begin * D, tokens, gate);
            multiply_block<T>(layer.gate_up, F + first, x + begin * D, tokens, up);
            for (int64_t i = 0; i < tokens; i++) {
                const float *g = gate + i * BLOCK, *u = up + i * BLOCK;
                T* to = inner + (begin + i) * F + first;
                for (int64_t o = 0; o < width; o++)
                    to[o] = rounded<T>(g[o] / (1.0f + exponential(-g[o])) * u[o]);
            }
        });
        add_product(layer.down, inner);
    }

    void logits() {
        const int64_t W = tokens.num_wanted;
        team.share(W, [&](int64_t w) {
            const float* row = residual + tokens.wanted[w] * D;
            rms_norm<T>(row, model.final_norm, D, model.norm_epsilon, inputs + w * D);
        });
        copy_products(model.output, inputs, W, tokens.logits);
    }

    const Model& model;
    const Tokens& tokens;
    const int threads;
    Team team;
    const int64_t M, D, H;  // tokens, hidden size, head size
    std::vector<Run> runs;
    bool has_long_slots = false;  // more than one token for some slot
    int64_t group, scores_stride, scratch;
    float *residual;   // (M, D)
    float *qkv;        // (M, queries, keys and values)
    T *inputs, *inner; // what the next product reads: (M, D), and (M, heads * H) or (M, F)
    float *scratches;  // one for each thread
};

}  // namespace

extern "C" void cygnet_forward(const Model* model, const Tokens* tokens, int64_t num_threads) {
    if (model->is_bf16)
        Pass<bf16>(*model, *tokens, int(num_threads)).run();
    else
        Pass<float>(*model, *tokens, int(num_threads)).run();
}
