#include "device.h"

#include <stdio.h>
#include <string.h>

#include "error.h"

ellm_status device_wanted(const settings *s, ellm_device otherwise, ellm_device *device, ellm_error *error) {
    const bool is_cpu = s->device != NULL && strcmp(s->device, "cpu") == 0;
    const bool is_gpu = s->device != NULL && strcmp(s->device, "vulkan") == 0;
    *device = is_cpu ? ELLM_DEVICE_CPU : is_gpu ? ELLM_DEVICE_GPU : otherwise;
    return s->device == NULL || is_cpu || is_gpu
               ? ELLM_OK
               : ellm_fail(error, ELLM_USAGE, "--device is cpu or vulkan, not '%.40s'", s->device);
}

/* Why a GPU that would work is not taken; "" where it is. */
static void say_slower(const ellm_model_info *info, const ellm_context *context, char *text, size_t cap) {
    ellm_device_info device;
    text[0] = '\0';
    if (context == NULL) {
        if (info->gpu_times_slower > 0) {
            snprintf(text, cap, "this board's GPU takes about %.3g times as long; --device vulkan uses it nevertheless",
                     info->gpu_times_slower);
        }
    } else if (ellm_context_get_device(context, &device) && device.is_processor) {
        snprintf(text, cap, "the only GPU that Vulkan finds is %s, which is this processor", device.name);
    }
}

/* Whether a failure to open a GPU is a reason to take the processor. */
static bool is_gpus_failure(ellm_status status) {
    return status == ELLM_GPU_MISSING || status == ELLM_GPU_LOST || status == ELLM_NO_MEMORY;
}

ellm_status device_open(const settings *s, const ellm_trust *trust, device_opener *open, void *user, ellm_model **model,
                        ellm_context **context, ellm_error *error) {
    char why[600];
    ellm_device device;
    const bool is_processors = s->takes_cpu || s->session != NULL || s->keep != NULL;
    ellm_status status =
        device_wanted(s, is_processors ? ELLM_DEVICE_CPU_FIRST : ELLM_DEVICE_GPU_FIRST, &device, error);
    status = status == ELLM_OK ? ellm_model_open_on(s->directory, trust, device, model, error) : status;
    if (status != ELLM_OK) {
        return status;
    }
    ellm_model_info info;
    ellm_model_get_info(*model, &info);
    const bool may_change = info.is_both && info.on_gpu && device != ELLM_DEVICE_GPU;
    say_slower(&info, NULL, why, sizeof why);
    if (!may_change || why[0] == '\0') {
        status = open(user, s, *model, context, error);
        if (status == ELLM_OK) {
            say_slower(&info, *context, why, sizeof why);
        } else if (error != NULL) {
            snprintf(why, sizeof why, "%s", error->text);
        }
        if (!may_change || (status != ELLM_OK && !is_gpus_failure(status)) || (status == ELLM_OK && why[0] == '\0')) {
            if (status == ELLM_OK && why[0] != '\0') {
                fprintf(stderr, "edgellm-rt: note: %s; --device cpu is faster\n", why);
            }
            return status;
        }
    }
    ellm_context_close(*context);
    ellm_model_close(*model);
    *context = NULL;
    *model = NULL;
    fprintf(stderr, "edgellm-rt: note: the processor computes: %s\n", why);
    status = ellm_model_open_on(s->directory, trust, ELLM_DEVICE_CPU, model, error);
    return status == ELLM_OK ? open(user, s, *model, context, error) : status;
}
