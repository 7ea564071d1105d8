// Conversion of rows of floats from and to ggml's types.

#include <atomic>

#include "common.hpp"
#include "ggml.h"

extern "C" {
#include "tensor/tensor.h"
}

using shim::guarded;

int llcuda_rows_to_float(int type, const void * rows, float * values, int64_t n_rows, int64_t n_columns) {
    return guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        const auto kind = static_cast<ggml_type>(type);
        const auto convert = ggml_get_type_traits(kind)->to_float;
        if (!convert) {
            return LLCUDA_UNSUPPORTED;
        }
        const size_t size = ggml_row_size(kind, n_columns);
        #pragma omp parallel for schedule(static) if(n_rows * n_columns > 1 << 16)
        for (int64_t row = 0; row < n_rows; row++) {
            convert(static_cast<const char *>(rows) + row * size, values + row * n_columns, n_columns);
        }
        return LLCUDA_OK;
    });
}

int llcuda_rows_from_float(int type, const float * values, void * rows, int64_t n_rows, int64_t n_columns,
                           const float * importance) {
    return guarded<int>(LLCUDA_EXCEPTION, [&]() -> int {
        const auto kind = static_cast<ggml_type>(type);
        if (!importance && ggml_quantize_requires_imatrix(kind)) {
            return LLCUDA_UNSUPPORTED;
        }
        ggml_quantize_init(kind);
        std::atomic<bool> failed{false};
        #pragma omp parallel for schedule(dynamic, 8) if(n_rows * n_columns > 1 << 14)
        for (int64_t row = 0; row < n_rows; row++) {
            // An assertion of ggml is caught on the thread where it fails.
            failed = !guarded<bool>(false, [&] {
                ggml_quantize_chunk(kind, values, rows, row * n_columns, 1, n_columns, importance);
                return true;
            }) || failed;
        }
        // Scales are F16, and too large a value makes them inf.
        failed = failed || !ggml_validate_row_data(kind, rows, n_rows * ggml_row_size(kind, n_columns));
        return failed ? LLCUDA_EXCEPTION : LLCUDA_OK;
    });
}
