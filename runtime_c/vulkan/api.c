#include "api.h"

#include <dlfcn.h>
#include <string.h>

#include "error.h"

#ifdef __ANDROID__
static const char *const names[] = {"libvulkan.so"};
static const char install[] = "Android and its maker bring the driver; compile with --device cpu for this phone";
#else
static const char *const names[] = {"libvulkan.so.1", "libvulkan.so"};
static const char install[] = "install the Vulkan loader and your GPU's driver (Debian: libvulkan1, "
                              "mesa-vulkan-drivers), or compile with --device "
                              "cpu";
#endif

ellm_status ellm_vulkan_failed(VkResult result, const char *doing, ellm_error *error) {
    switch (result) {
    case VK_ERROR_OUT_OF_HOST_MEMORY:
    case VK_ERROR_OUT_OF_DEVICE_MEMORY:
        return ellm_fail(error, ELLM_NO_MEMORY,
                         "the GPU has no memory left for %s; ask for a shorter context, or use a smaller model", doing);
    case VK_ERROR_DEVICE_LOST:
        return ellm_fail(error, ELLM_GPU_LOST, "the GPU stopped while %s; see the system's log, then start again",
                         doing);
    case VK_TIMEOUT:
        return ellm_fail(error, ELLM_GPU_LOST, "the GPU did not answer in time while %s; see the system's log", doing);
    default:
        return ellm_fail(error, ELLM_GPU_MISSING,
                         "Vulkan error %d while %s; update the GPU's driver, or compile with "
                         "--device cpu",
                         (int)result, doing);
    }
}

/* A function pointer from an object pointer, which ISO C has no cast for and POSIX promises. */
static PFN_vkVoidFunction function_of(void *symbol) {
    PFN_vkVoidFunction function;
    memcpy(&function, &symbol, sizeof function);
    return function;
}

ellm_status ellm_vulkan_load(ellm_vulkan_api *api, ellm_error *error) {
    *api = (ellm_vulkan_api){0};
    for (size_t i = 0; i < sizeof names / sizeof *names && api->library == NULL; i++) {
        api->library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    }
    if (api->library == NULL) {
        return ellm_fail(error, ELLM_GPU_MISSING, "there is no Vulkan here (%s), which GPUs are reached through; %s",
                         names[0], install);
    }
    PFN_vkGetInstanceProcAddr find =
        (PFN_vkGetInstanceProcAddr)function_of(dlsym(api->library, "vkGetInstanceProcAddr"));
    PFN_vkCreateInstance create = find != NULL ? (PFN_vkCreateInstance)find(NULL, "vkCreateInstance") : NULL;
    if (create == NULL) {
        ellm_vulkan_unload(api);
        return ellm_fail(error, ELLM_GPU_MISSING, "%s is no Vulkan loader; %s", names[0], install);
    }
    const VkApplicationInfo application = {
        .sType = VK_STRUCTURE_TYPE_APPLICATION_INFO, .pApplicationName = "edgellm", .apiVersion = VK_API_VERSION_1_3};
    const VkInstanceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
                                       .pApplicationInfo = &application};
    VkResult result = create(&info, NULL, &api->instance);
    if (result != VK_SUCCESS) {
        api->instance = NULL;
        ellm_vulkan_unload(api);
        return ellm_fail(error, ELLM_GPU_MISSING, "Vulkan finds no driver here (error %d); %s", (int)result, install);
    }
#define LOAD(name)                                                                                                     \
    api->name = (PFN_vk##name)find(api->instance, "vk" #name);                                                         \
    if (api->name == NULL) {                                                                                           \
        ellm_vulkan_unload(api);                                                                                       \
        return ellm_fail(error, ELLM_GPU_MISSING, "Vulkan here lacks vk" #name "; %s", install);                       \
    }
    ELLM_VULKAN_INSTANCE(LOAD)
#undef LOAD
    api->GetMatrices = (PFN_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR)find(
        api->instance, "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR");
    return ELLM_OK;
}

ellm_status ellm_vulkan_load_device(ellm_vulkan_api *api, VkDevice device, ellm_error *error) {
#define LOAD(name)                                                                                                     \
    api->name = (PFN_vk##name)api->GetDeviceProcAddr(device, "vk" #name);                                              \
    if (api->name == NULL) {                                                                                           \
        return ellm_fail(error, ELLM_GPU_MISSING, "the driver lacks vk" #name "; %s", install);                        \
    }
    ELLM_VULKAN_DEVICE(LOAD)
#undef LOAD
    return ELLM_OK;
}

void ellm_vulkan_unload(ellm_vulkan_api *api) {
    if (api->instance != NULL && api->DestroyInstance != NULL) {
        api->DestroyInstance(api->instance, NULL);
    }
    if (api->library != NULL) {
        dlclose(api->library);
    }
    *api = (ellm_vulkan_api){0};
}
