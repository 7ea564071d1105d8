// The host's part of choosing tokens on a device: the numbers that the kernels need of a row, and the penalties of the
// tokens chosen before. Random numbers are those of llama.cpp's distribution sampler.

#include "sampling/sampling.hpp"

#include <deque>
#include <random>
#include <unordered_map>

struct llcuda_draw {
    int32_t  k;
    float    top_p, min_p, temperature;
    uint32_t seed;
    std::vector<llcuda_adjustment> biases;
    int32_t  last_n;
    float    repeat, frequency, presence;
    std::mt19937 random;
    std::deque<int32_t> last;
    std::unordered_map<int32_t, int32_t> counts;  // of `last`
};

llcuda_draw * llcuda_draw_new(int32_t k, float top_p, float min_p, float temperature, uint32_t seed, int32_t n_biases,
                              const int32_t * tokens, const float * biases, int32_t last_n, float repeat,
                              float frequency, float presence) {
    return shim::guarded<llcuda_draw *>(nullptr, [&] {
        auto * draw = new llcuda_draw{k, top_p, min_p, temperature, seed, {}, last_n, repeat, frequency, presence,
                                      std::mt19937(seed), {}, {}};
        for (int32_t i = 0; i < n_biases; i++) {
            draw->biases.push_back({tokens[i], 0, biases[i], 0});
        }
        return draw;
    });
}

llcuda_draw * llcuda_draw_clone(const llcuda_draw * draw) {
    return shim::guarded<llcuda_draw *>(nullptr, [&] { return new llcuda_draw(*draw); });
}

void llcuda_draw_accept(llcuda_draw * draw, int32_t token) {
    if (draw->last_n <= 0) {
        return;
    }
    draw->last.push_back(token);
    draw->counts[token]++;
    if (draw->last.size() > static_cast<size_t>(draw->last_n)) {
        const auto oldest = draw->counts.find(draw->last.front());
        if (--oldest->second == 0) {
            draw->counts.erase(oldest);
        }
        draw->last.pop_front();
    }
}

void llcuda_draw_reset(llcuda_draw * draw) {
    draw->random.seed(draw->seed);
    draw->last.clear();
    draw->counts.clear();
}

void llcuda_draw_free(llcuda_draw * draw) { delete draw; }

void shim::fill_draw(llcuda_draw * draw, llcuda_row & task, std::vector<llcuda_adjustment> & adjustments) {
    task.draw = 1;
    task.k = draw->k;
    task.top_p = draw->top_p;
    task.min_p = draw->min_p;
    task.temperature = draw->temperature;
    task.repeat = draw->repeat;
    task.frequency = draw->frequency;
    task.presence = draw->presence;
    task.uniform = std::uniform_real_distribution<double>(0, 1)(draw->random);
    const size_t begin = adjustments.size();
    for (llcuda_adjustment bias : draw->biases) {
        const auto found = draw->counts.find(bias.token);
        bias.count = found == draw->counts.end() ? 0 : found->second;
        adjustments.push_back(bias);
    }
    const size_t end = adjustments.size();
    for (const auto & [token, count] : draw->counts) {
        bool biased = false;
        for (size_t i = begin; i < end; i++) {
            biased |= adjustments[i].token == token;
        }
        if (!biased) {
            adjustments.push_back({token, count, 0, 0});
        }
    }
}
