// A walk through the header of a GGUF file in memory, shared by check.cpp and reader.cpp.
#pragma once

#include <cstring>
#include <string>
#include <string_view>

#include "ggml.h"
#include "gguf.h"

namespace shim {

// Reads values one after the other. `ok` is false after the end of the bytes, and after an unknown type. `beyond`: the
// bytes ended.
struct Walk {
    const char * at;
    const char * end;
    bool ok = true;
    bool beyond = false;

    const char * take(uint64_t n) {
        beyond = beyond || (ok && n > static_cast<uint64_t>(end - at));
        ok = ok && !beyond;
        const char * here = at;
        at += ok ? n : 0;
        return here;
    }
    template <typename T> T read() {
        T value{};
        const char * here = take(sizeof(T));
        if (ok) {
            memcpy(&value, here, sizeof(T));
        }
        return value;
    }
    std::string_view text() {
        const uint64_t length = read<uint64_t>();
        const char * here = take(length);
        return ok ? std::string_view(here, length) : std::string_view();
    }

    struct Value {
        uint32_t     type;   // of the elements, in an array
        bool         array;
        uint64_t     count;  // of elements
        const char * start;  // of the first element; of a text alone, its first byte
    };

    // The value of a pair, passed over.
    Value value() {
        static constexpr uint8_t SIZES[GGUF_TYPE_COUNT] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
        Value found = {read<uint32_t>(), false, 1, nullptr};
        if (found.type == GGUF_TYPE_ARRAY) {
            found.array = true;
            found.type  = read<uint32_t>();
            found.count = read<uint64_t>();
        }
        found.start = at;
        if (found.type == GGUF_TYPE_STRING) {
            for (uint64_t left = found.count; ok && left; left--) {
                text();
            }
            found.start += ok && !found.array ? sizeof(uint64_t) : 0;
        } else if (found.type < GGUF_TYPE_COUNT && SIZES[found.type]) {
            take(found.count > SIZE_MAX / 8 ? SIZE_MAX : found.count * SIZES[found.type]);
        } else {
            ok = false;
        }
        return found;
    }
};

// An error line for a tensor's type that ggml does not have; ggml's parser reads it as one before it looks.
inline std::string unknown_type(std::string_view name, uint32_t type) {
    return "tensor '" + std::string(name.substr(0, GGML_MAX_NAME)) + "' has type " + std::to_string(type)
        + ", which ggml does not have; it has 0 to " + std::to_string(GGML_TYPE_COUNT - 1);
}

}  // namespace shim
