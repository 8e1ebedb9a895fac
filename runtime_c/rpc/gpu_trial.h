/* gpu_trial.h: how long kernels take on this board's GPU, for tuning. Only where the program has Vulkan (ELLM_VULKAN).
 *
 * What is tried comes as a plan of its own, with the kernels' modules: every function of its body is one candidate. Each
 * weight has a place of its own, so that a function that goes through many finds none of them in a cache. */
#ifndef ELLM_RPC_GPU_TRIAL_H
#define ELLM_RPC_GPU_TRIAL_H

#include "edgellm.h"

typedef struct rpc_gpu_trial rpc_gpu_trial;

/* Opens the GPU with a plan and its modules, files of the session's folder. Weights are random numbers that no kernel
 * stumbles over. position: where the first row stands in its context; the others follow.
 * most_bytes: of memory for weights and states. `description`: a JSON object, what the GPU is. */
ellm_status ellm_rpc_gpu_open(const char *plan, const char *modules, int32_t position, uint64_t most_bytes,
                              rpc_gpu_trial **trial, char *description, size_t n, ellm_error *error);
/* Runs the body's function `index` once, then measures `repeat` times: seconds of all its steps, one after another, the
 * mean over as many runs as last min_repeat_ms. */
ellm_status ellm_rpc_gpu_time(rpc_gpu_trial *trial, int64_t index, int32_t repeat, int32_t min_repeat_ms,
                              double *seconds, ellm_error *error);
/* Safe on NULL. */
void ellm_rpc_gpu_close(rpc_gpu_trial *trial);

#endif
