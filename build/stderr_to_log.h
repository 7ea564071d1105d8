// Included before a few files of llama.cpp that print errors to stderr past the log callback:
// the error's first line goes to the log, so that it reaches the exception's message.
#pragma once

#include <stdarg.h>
#ifdef __cplusplus
#include <cstdio>
#else
#include <stdio.h>
#endif
#include <string.h>

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif
GGML_API void ggml_log_internal(enum ggml_log_level level, const char * format, ...);
#ifdef __cplusplus
}
#endif

static inline void llcuda_log_first_line(const char * format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    text[strcspn(text, "\n")] = '\0';
    if (text[0]) {
        ggml_log_internal(GGML_LOG_LEVEL_ERROR, "%s\n", text);
    }
}

#define fprintf(stream, ...) llcuda_log_first_line(__VA_ARGS__)
