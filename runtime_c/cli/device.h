/* device.h: which device computes, of those that a bundle is for. */
#ifndef EDGELLM_RT_DEVICE_H
#define EDGELLM_RT_DEVICE_H

#include "options.h"

/* Opens a context of a model; `user` is whoever asked. real_gpu: as in ellm_context_options. */
typedef ellm_status device_opener(void *user, const settings *s, const ellm_model *model, bool real_gpu,
                                  ellm_context **context, ellm_error *error);

/* Opens a bundle for --device; without it for the GPU, if the bundle has kernels for one and it works here and is the
 * faster one, else for the processor: then a line on standard error says why. What only the processor can (golden
 * prompts, saved sessions and the like) is for the processor, if the bundle is. */
ellm_status device_open(const settings *s, const ellm_trust *trust, device_opener *open, void *user, ellm_model **model,
                        ellm_context **context, ellm_error *error);
/* As --device says, else `otherwise`. USAGE for what is no device. */
ellm_status device_wanted(const settings *s, ellm_device otherwise, ellm_device *device, ellm_error *error);

#endif
