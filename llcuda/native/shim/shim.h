// The C interface of the shim, besides llama.h. cffi reads this file as it is, so it has plain
// declarations only; common.hpp includes it inside extern "C". No exception and no failed assertion
// of llama.cpp on the calling thread leaves these functions: it becomes a status, and lines in
// llcuda_errors().

enum llcuda_status {
    LLCUDA_OK                =  0,
    LLCUDA_NO_ROOM           =  1,  // llama_decode: no free KV cells; nothing was changed
    LLCUDA_ABORTED           =  2,  // cancelled, or a signal handler raised
    LLCUDA_INVALID_BATCH     = -1,  // llama_decode: rejected, nothing was changed
    LLCUDA_BUSY              = -100, // another thread is inside this context
    LLCUDA_CLOSED            = -111,
    LLCUDA_BAD_TOKEN         = -101,
    LLCUDA_BAD_SEQUENCE      = -102,
    LLCUDA_BAD_POSITION      = -103,
    LLCUDA_TOO_MANY_TOKENS   = -104,
    LLCUDA_TOO_MANY_OUTPUTS  = -105,
    LLCUDA_NO_OUTPUT         = -106, // no logits or embeddings at this index
    LLCUDA_NO_CANDIDATES     = -107, // a sampler chain left nothing to choose from
    LLCUDA_CALLBACK_FAILED   = -108, // a Python callback raised; the caller re-raises
    LLCUDA_UNSUPPORTED       = -109, // this memory, device or type cannot do that
    LLCUDA_EXCEPTION         = -110, // llama.cpp threw or asserted; see llcuda_errors()
    LLCUDA_INVALID_FILE      = -112, // a model file that must not be loaded; see llcuda_errors()
    LLCUDA_LOST              = -113, // the device under this context failed
    LLCUDA_TRUNCATED         = -114, // bytes of a file that end too early; see llcuda_errors()
    LLCUDA_FILE_CHANGED      = -115, // a mapped file is another than it was; the last of llcuda_errors() says how
    LLCUDA_NOT_A_NUMBER      = -116  // as NO_CANDIDATES, because logits are NaN
};

enum llcuda_outputs { LLCUDA_OUTPUT_NONE = 0, LLCUDA_OUTPUT_LAST = 1, LLCUDA_OUTPUT_ALL = 2 };

// --- library.cpp: log, errors, backends ---

const char * llcuda_commit(void);             // the llama.cpp commit of the headers
const char * llcuda_cuda_architectures(void); // CMake's names, separated by ','; empty without CUDA
const char * llcuda_patches(void);            // of llama.cpp, separated by ','; empty without any
const char * llcuda_cuda_version(void);       // of the toolkit, as "13.0"; empty without CUDA
const char * llcuda_library_path(void);       // the libllama that llama_decode comes from
void         llcuda_init(uint64_t main_thread);
void         llcuda_forked(void);             // a forked child: its exit skips what libraries registered before the fork
void         llcuda_log_level(int level);     // deliver lines of this ggml_log_level and above
const char * llcuda_errors(void);             // this thread's last warnings and errors, one a line
void         llcuda_clear_errors(void);
int          llcuda_backend_score(const char * path);  // 0: cannot run here; -1: cannot be loaded
bool         llcuda_cpu_permits(const char * feature); // "avx", "avx512" or "amx", which is tried out
bool         llcuda_backend_load(const char * path);
int          llcuda_memory_now(ggml_backend_dev_t device, size_t * free, size_t * total);
bool         llcuda_gpus_answer(void);        // false: a GPU failed, and no GPU works in this process

// --- gguf/check.cpp ---

// Refuse a file whose tensor types would end the process while it computes. llama.cpp itself reports
// other damage. positions: gets the size of a table of learned positions, 0 without one.
int llcuda_gguf_check(const char * path, int64_t * positions);

// --- gguf/reader.cpp ---

// A key and its value. key, value: offsets in the file; those of a text are of its first byte. type: a gguf_type;
// for an array that of its elements. size: bytes of the value.
struct llcuda_gguf_pair {
    uint64_t key, key_size, value, size, count;
    uint32_t type;
    bool     array;
};
// A tensor. offset: from the beginning of the data section. n_dims: as written; ne has 1 beyond it. type: a
// ggml_type.
struct llcuda_gguf_tensor {
    char     name[64];
    uint32_t n_dims;
    int32_t  type;
    int64_t  ne[4];
    uint64_t offset, size;
};
struct llcuda_gguf_index {
    uint32_t version;
    uint64_t alignment, data_offset;
    int64_t  n_pairs, n_tensors;
    const struct llcuda_gguf_pair *   pairs;
    const struct llcuda_gguf_tensor * tensors;
};
// Read the header of a mapped file, of which `size` bytes are there. LLCUDA_TRUNCATED: these bytes end within the
// header. LLCUDA_INVALID_FILE: it is not a GGUF file, or is damaged. index: gets the header, null on failure.
int llcuda_gguf_read(const char * data, size_t size, uint64_t file_size, struct llcuda_gguf_index ** index);
void llcuda_gguf_free(struct llcuda_gguf_index * index);
// Copy bytes of a mapping; its file may have become shorter.
int llcuda_gguf_copy(const char * data, size_t size, char * copy);
// Find where each text of an array of n texts begins.
int llcuda_gguf_texts(const char * data, size_t size, int64_t n, int64_t * starts);
// Read the values of a tensor. LLCUDA_UNSUPPORTED: ggml cannot turn this type into floats.
int llcuda_gguf_floats(const char * data, uint64_t size, int type, float * values);
// LLCUDA_INVALID_FILE: the tensor has a NaN or an infinity.
int llcuda_gguf_validate(const char * data, uint64_t size, int type);

// --- decode/model.cpp ---

void llcuda_model_free(struct llama_model * model);  // does nothing after a GPU failed
// LLCUDA_FILE_CHANGED: a file that the weights are mapped from; each decode says so too.
int llcuda_model_check(const struct llama_model * model);
struct llama_model * llcuda_model_load(const char * path, struct llama_model_params params);
int32_t llcuda_tokenize(const struct llama_vocab * vocab, const char * text, int32_t length,
                        int32_t * tokens, int32_t capacity, bool add_special, bool parse_special);
int32_t llcuda_detokenize(const struct llama_vocab * vocab, const int32_t * tokens, int32_t n_tokens,
                          char * text, int32_t capacity, bool remove_special, bool unparse_special);
int32_t llcuda_token_to_piece(const struct llama_vocab * vocab, int32_t token, char * text, int32_t capacity, bool special);
// Write all pieces one after the other, and where each begins, n_tokens + 1 offsets. names[token]: the token is a control
// token or ends a generation, and its name is written. Returns the bytes of all; at most `capacity` are written.
int64_t llcuda_pieces(const struct llama_vocab * vocab, char * text, int64_t capacity, int64_t * begins, int8_t * names);
struct llama_adapter_lora * llcuda_adapter_load(struct llama_model * model, const char * path);

// --- decode/copies.cpp ---

// Copy the quantized matrices of a model as BF16, where the GPU and its backend use that. A status; the copies live as
// long as the model.
int llcuda_make_copies(const struct llama_model * model);
// The bytes that they would take of a device, also for a model without its weights.
int64_t llcuda_copies_needed(const struct llama_model * model, const char * device);

// --- decode/half.cpp ---

// Tensors that became F16, and those that stay BF16 because a number is beyond F16's range.
struct llcuda_conversion {
    int64_t converted, kept;
};
// Turn the BF16 tensors of a loaded model into F16, before its first context, on GPUs without BF16 Tensor Cores;
// everywhere: on all GPUs.
int llcuda_model_bf16_to_f16(const struct llama_model * model, bool everywhere, struct llcuda_conversion * done);
// The same of an adapter.
int llcuda_adapter_bf16_to_f16(struct llama_adapter_lora * adapter, bool everywhere, struct llcuda_conversion * done);

// --- decode/probe.cpp ---

// Check the operations of a model before the first context computes them. LLCUDA_INVALID_FILE: their
// parameters would end the process.
int llcuda_probe(struct llama_model * model, struct llama_context_params params);

// --- decode/estimate.cpp ---

// Bytes on one device; type: a ggml_backend_dev_type.
struct llcuda_device_memory {
    const char * name;
    int    type;
    size_t model, context, compute, free, total;
};

// What `model`, loaded with no_alloc, and a context would take of each device, the CPU last. Returns how many devices.
int llcuda_memory_needed(struct llama_model * model, struct llama_context_params params,
                         struct llcuda_device_memory * devices, int32_t capacity);

// --- gguf/quantize.cpp ---

// Write a model file with other types. report: called after each tensor with 0.0 to 1.0; false is LLCUDA_ABORTED. A
// target that lacks its last bytes is LLCUDA_EXCEPTION.
int llcuda_quantize(const char * source, const char * target, struct llama_model_quantize_params params,
                    llama_progress_callback report, void * data);
// What llcuda_quantize would do, as llama.cpp's lines, one for each tensor; null on failure. Valid until the next call
// on this thread.
const char * llcuda_quantize_plan(const char * source, struct llama_model_quantize_params params);
int64_t llcuda_row_size(int type, int64_t columns);  // bytes, of a ggml_type
// In which texts a regular expression, as tensor overrides are, finds a match.
int     llcuda_search(const char * pattern, const char ** texts, int64_t n, bool * found);
// Bytes of a tensor in a model file, 0 without it, or a status below 0.
int64_t llcuda_tensor_size(const char * path, const char * name);

// --- gguf/imatrix.cpp ---

struct llcuda_imatrix;

// An entry. sums: sums of squares, n_sums / n_counts columns for each of the n_counts matrices, which are 1 but for
// experts. counts: how many rows were added to each matrix.
struct llcuda_imatrix_entry {
    const char *  name;
    const float * sums;
    const float * counts;
    int64_t n_sums, n_counts;
};

struct llcuda_imatrix * llcuda_imatrix_new(bool output);  // output: also collect for the output matrix
void llcuda_imatrix_free(struct llcuda_imatrix * matrix);
// Let a context with these parameters add to the matrix whatever it decodes.
void llcuda_imatrix_collect_into(struct llama_context_params * params, struct llcuda_imatrix * matrix);
const char * llcuda_imatrix_failure(const struct llcuda_imatrix * matrix);  // why it stopped; empty if it did not
int64_t llcuda_imatrix_size(const struct llcuda_imatrix * matrix);  // entries
void llcuda_imatrix_get(const struct llcuda_imatrix * matrix, int64_t i, struct llcuda_imatrix_entry * entry);
int  llcuda_imatrix_write(const char * path, const struct llcuda_imatrix_entry * entries, int64_t n_entries,
                          const char ** datasets, int64_t n_datasets, uint32_t chunks, uint32_t chunk_size);

// --- tensor/nf4.cpp ---

enum { LLCUDA_NF4_LARGEST_BLOCK = 4096 };

// values[i] = code[packed[i]] * absmax[i / block_size], rounded once to `type` (GGML_TYPE_F32, _F16 or _BF16;
// LLCUDA_UNSUPPORTED for others). The high half of a byte comes before the low half. code: 16 values. block_size: a
// power of two.
int llcuda_nf4_dequantize(const uint8_t * packed, const float * absmax, const float * code, int64_t n,
                          int32_t block_size, int type, void * values);
// The same on a GPU, as the next work of `stream`, a cudaStream_t. packed, absmax and values are addresses in its
// memory, packed aligned to 4 bytes and values to 16.
int llcuda_nf4_on_gpu(uintptr_t packed, uintptr_t absmax, const float * code, int64_t n, int32_t block_size, int type,
                      uintptr_t values, uintptr_t stream);
// Quantize values. bounds: the 15 bounds between the 16 values in their order. codes: the codes of these values in the
// same order. Returns false if a value is NaN or infinite.
bool llcuda_nf4_quantize(const float * values, int64_t n, int32_t block_size, const float * bounds,
                         const uint8_t * codes, uint8_t * packed, float * absmax);

// --- decode/context.cpp, outputs.cpp, memory.cpp ---

struct llcuda_context;

struct llcuda_timings {
    int64_t prefill_ns, decode_ns, sample_ns;
    int64_t prefill_tokens, decode_tokens, sampled_tokens;
    int64_t prefill_calls, decode_calls;
    // llama.cpp's own counters
    int64_t graphs_reused, graphs_kept, graphs_evicted, llama_prefill_tokens, llama_decode_tokens;
    double  llama_prefill_ms, llama_decode_ms;
};

// What the last decode did.
struct llcuda_event {
    bool    decode;  // every row belongs to another sequence
    int32_t rows, outputs;
    int64_t ns;      // with the wait for the device, if llcuda_context_sync was called
};

// positions: the bound below which all positions must lie; 0 = no bound.
// keep_logits: logits stay on the device, and a row is copied when it is read.
struct llcuda_context * llcuda_context_new(struct llama_model * model, struct llama_context_params params, int64_t positions,
                                           bool keep_logits);
// Set the mode of CUDA graphs, "auto" at first, on the GPUs that take part; see graphs.h.
int  llcuda_context_set_graphs(struct llcuda_context * context, const char * mode);
// What llcuda_graphs_report says of the GPUs that take part, summed up; on: on all of them.
struct llcuda_cuda_graphs {
    int64_t captured, replays, checked, different;
    bool    on;
};
int  llcuda_context_graphs(struct llcuda_context * context, struct llcuda_cuda_graphs * found);
// Compute each row as if it were alone, from the next decode on. LLCUDA_UNSUPPORTED: another device than the CPU takes
// part, or the CPU's kernels cannot.
int  llcuda_context_batch_invariant(struct llcuda_context * context);
// Whether it must not be used any more; llcuda_context_renew makes it new and empty, with the parameters given.
bool llcuda_context_lost(struct llcuda_context * context);
int  llcuda_context_renew(struct llcuda_context * context, struct llama_model * model, struct llama_context_params params);
bool llcuda_context_remembers(struct llcuda_context * context);  // false for an encoder
bool llcuda_context_whole(struct llcuda_context * context);      // a text cannot be split over several batches
bool llcuda_context_reduces(struct llcuda_context * context);  // sampling begins on the device; known after a decode
int  llcuda_context_close(struct llcuda_context * context);  // frees its memory; later calls return LLCUDA_CLOSED
void llcuda_context_free(struct llcuda_context * context);   // once no thread can call
struct llama_context * llcuda_context_raw(struct llcuda_context * context);
// From now on the calling thread waits until other threads have left the context, instead of getting LLCUDA_BUSY.
void llcuda_context_claim(struct llcuda_context * context);
void llcuda_context_cancel(struct llcuda_context * context);  // from any thread: abort the running decode
int  llcuda_context_sync(struct llcuda_context * context);    // wait for the device; its time counts as decode
int  llcuda_context_timings(struct llcuda_context * context, struct llcuda_timings * timings, bool reset);
int  llcuda_context_event(struct llcuda_context * context, struct llcuda_event * event);
int  llcuda_set_embeddings(struct llcuda_context * context, bool on);  // from the next decode on; then every row is an output
int  llcuda_set_threads(struct llcuda_context * context, int32_t threads, int32_t threads_batch);

// Compute tokens of one sequence. pos < 0: after its last position. More than n_batch tokens are split; if a part
// fails, all parts are undone. outputs: an llcuda_outputs.
int llcuda_decode(struct llcuda_context * context, const int32_t * tokens, int32_t n_tokens,
                  int32_t seq, int32_t pos, int outputs);
// Compute one row a token, n_rows <= n_batch. positions[i] < 0: as above. outputs[i] != 0: compute its logits.
int llcuda_decode_rows(struct llcuda_context * context, int32_t n_rows, const int32_t * tokens,
                       const int32_t * seqs, const int32_t * positions, const int8_t * outputs);
int llcuda_encode(struct llcuda_context * context, const int32_t * tokens, int32_t n_tokens);

// Write at most `capacity` indices; returns how many there are, or a status below 0.
int llcuda_output_indices(struct llcuda_context * context, int32_t * indices, int32_t capacity);
// A copy of a row of results, the same one until the next decode, which the caller releases. Samplers, log-probabilities
// and comparisons read what the caller writes into it.
int llcuda_logits(struct llcuda_context * context, int32_t index, float ** row);
int llcuda_embeddings(struct llcuda_context * context, int32_t index, float ** row);
int llcuda_embeddings_seq(struct llcuda_context * context, int32_t seq, float ** row);
void llcuda_row_release(float * row);

int llcuda_memory_clear(struct llcuda_context * context, bool data);
int llcuda_memory_remove(struct llcuda_context * context, int32_t seq, int32_t begin, int32_t end);
int llcuda_memory_copy(struct llcuda_context * context, int32_t source, int32_t target, int32_t begin, int32_t end);
int llcuda_memory_keep(struct llcuda_context * context, int32_t seq);
int llcuda_memory_shift(struct llcuda_context * context, int32_t seq, int32_t begin, int32_t end, int32_t delta);
int llcuda_memory_divide(struct llcuda_context * context, int32_t seq, int32_t begin, int32_t end, int32_t divisor);
int llcuda_memory_range(struct llcuda_context * context, int32_t seq, int32_t * first, int32_t * last);

// seq < 0: the whole context. Each returns bytes, or a status below 0.
int64_t llcuda_state_size(struct llcuda_context * context, int32_t seq, uint32_t flags);
int64_t llcuda_state_save(struct llcuda_context * context, int32_t seq, uint32_t flags, uint8_t * data, size_t size);
int64_t llcuda_state_load(struct llcuda_context * context, int32_t seq, uint32_t flags, const uint8_t * data, size_t size);

int llcuda_set_adapters(struct llcuda_context * context, struct llama_adapter_lora ** adapters, float * scales, size_t n);

// --- sampling/sampler.cpp ---

// How the tokens of one sequence are chosen.
// superset > 0: sampling needs only so many of the best candidates, and `extras`, because the chain's first cut keeps
//     fewer. ranked: that cut expects the best candidate first.
// local: the chain calls Python, so it runs on the calling thread.
// draw: what a device does in place of the chain; may be null.
// mask: bit i % 32 of word i / 32 allows token i; null allows all.
// forced: the token that the row gets without its logits and without a random number; -1 = none.
struct llcuda_sampling {
    struct llama_sampler * chain;
    struct llcuda_draw *   draw;
    int32_t         superset, n_extras;
    const int32_t * extras;
    const uint32_t * mask;
    int32_t         forced;
    int8_t          ranked, local;
};

struct llama_sampler * llcuda_grammar(const struct llama_vocab * vocab, const char * grammar, const char * root,
                                      const char ** patterns, size_t n_patterns, const int32_t * tokens, size_t n_tokens);
struct llama_sampler * llcuda_python_step(void * handle);
struct llama_sampler * llcuda_sampler_clone(struct llama_sampler * chain);
int llcuda_sampler_accept(struct llama_sampler * chain, int32_t token);
int llcuda_sampler_reset(struct llama_sampler * chain);
// Choose from the logits at `index` of the last decode; the chain accepts the token.
int llcuda_sample(struct llcuda_context * context, const struct llcuda_sampling * sampling, int32_t index, int32_t * token);
// The same over `n` given logits.
int llcuda_sample_logits(struct llama_sampler * chain, const float * logits, int32_t n, int32_t * token);

// --- sampling/batch_sampler.cpp ---

// Sample n rows of the last decode, each with its own sampling, on several threads where it pays.
// indices: of the tokens in that call. tokens, statuses: get one result a row. ns: gets the time without the wait for
// the decode. Returns how many rows failed, or a status below 0.
int llcuda_sample_rows(struct llcuda_context * context, int32_t n, const int32_t * indices,
                       const struct llcuda_sampling * samplings, int32_t * tokens, int32_t * statuses, int64_t * ns);

// --- sampling/draw.cpp ---

// The chain LogitBias, Penalties, TopK (k = 0: without), TopP, MinP, Temperature, Distribution for a device, with its
// own random numbers and its own record of the chosen tokens. biases: those of n_biases tokens.
struct llcuda_draw * llcuda_draw_new(int32_t k, float top_p, float min_p, float temperature, uint32_t seed, int32_t n_biases,
                                     const int32_t * tokens, const float * biases, int32_t last_n, float repeat,
                                     float frequency, float presence);
struct llcuda_draw * llcuda_draw_clone(const struct llcuda_draw * draw);
void llcuda_draw_accept(struct llcuda_draw * draw, int32_t token);
void llcuda_draw_reset(struct llcuda_draw * draw);
void llcuda_draw_free(struct llcuda_draw * draw);

// --- sampling/logprobs.cpp ---

// Log-softmax of n rows of the last decode, on several threads where it pays, counted as sampling.
// indices: as above. values: get that of tokens[i] in row i. top_tokens, top_values: get the n_top best of each row, at
// most the size of the vocabulary, best first, of equal ones the lower token. All are NaN in a row that has NaN or inf,
// or nothing but -inf.
int llcuda_logprobs(struct llcuda_context * context, int32_t n, const int32_t * indices, const int32_t * tokens,
                    int32_t n_top, double * values, int32_t * top_tokens, double * top_values);

// --- decode/divergence.cpp ---

// A row compared with the same row of the reference: log p of a token in both; sum p log(p / q) with p of the
// reference; whether the most probable token is the same. NaN if a row has NaN or inf.
struct llcuda_comparison {
    double logprob, reference_logprob, divergence;
    bool   same_best;
};
int llcuda_compare(struct llcuda_context * context, struct llcuda_context * reference, int32_t n,
                   const int32_t * indices, const int32_t * tokens, struct llcuda_comparison * results);
