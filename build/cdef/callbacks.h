// Python functions that the shim calls; library.py and sampler.py define them.

typedef struct llama_token_data { llama_token id; float logit; float p; ...; } llama_token_data;

extern "Python" bool llcuda_on_progress(float progress, void * user_data);
extern "Python+C" void llcuda_on_log(int level, const char * text);
extern "Python+C" int llcuda_on_signals(void);
extern "Python+C" int llcuda_on_step_apply(void * handle, llama_token_data * data, size_t size,
                                           int64_t * selected, size_t * kept);
extern "Python+C" int llcuda_on_step_accept(void * handle, int32_t token);
extern "Python+C" int llcuda_on_step_reset(void * handle);
extern "Python+C" void * llcuda_on_step_clone(void * handle);
extern "Python+C" void llcuda_on_step_free(void * handle);
