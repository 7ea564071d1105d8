# Backends besides the CPU's and CUDA's: LLCUDA_BACKENDS names them, and llama.cpp's own options turn them on.

# Turn on Vulkan and ROCm where they are asked for, or stop and say what they need.
function(find_further_backends)
  foreach(backend IN LISTS LLCUDA_BACKENDS)
    if(backend STREQUAL "vulkan")
      find_vulkan()
      set(GGML_VULKAN ON PARENT_SCOPE)
    elseif(backend STREQUAL "rocm")
      find_rocm()
      set(GGML_HIP ON PARENT_SCOPE)
    else()
      message(FATAL_ERROR "llcuda: LLCUDA_BACKENDS=${LLCUDA_BACKENDS}; allowed are vulkan and rocm, separated by ';'. "
        "LLCUDA_CUDA is the option for CUDA.")
    endif()
    message(STATUS "llcuda: ${backend} is on")
  endforeach()
endfunction()

# Vulkan needs the compiler of shaders, the loader with its headers, and the headers of SPIR-V.
function(find_vulkan)
  find_package(Vulkan COMPONENTS glslc QUIET)
  find_package(SPIRV-Headers CONFIG QUIET HINTS ENV VULKAN_SDK)
  set(missing "")
  if(NOT Vulkan_LIBRARY OR NOT Vulkan_INCLUDE_DIR)
    list(APPEND missing "libvulkan-dev")
  endif()
  if(NOT Vulkan_GLSLC_EXECUTABLE)
    list(APPEND missing "glslc")
  endif()
  if(NOT SPIRV-Headers_FOUND)
    list(APPEND missing "spirv-headers")
  endif()
  if(missing)
    list(JOIN missing " " packages)
    message(FATAL_ERROR "llcuda: LLCUDA_BACKENDS=vulkan, but parts of Vulkan's SDK are missing. Install them, e.g. "
      "'apt install ${packages}', or set VULKAN_SDK to an SDK, and build again in a new folder.")
  endif()
  file(STRINGS ${Vulkan_INCLUDE_DIR}/vulkan/vulkan_core.h layer_settings REGEX "define VK_EXT_layer_settings ")
  if(NOT layer_settings)
    message(FATAL_ERROR "llcuda: LLCUDA_BACKENDS=vulkan, but Vulkan's headers in ${Vulkan_INCLUDE_DIR} are too old: they "
      "have no VK_EXT_layer_settings. Those of Debian 13 have it. Set VULKAN_SDK to a newer SDK, or Vulkan_INCLUDE_DIR "
      "(--config-settings=cmake.define.Vulkan_INCLUDE_DIR=FOLDER) to newer headers, and build again in a new folder.")
  endif()
endfunction()

# ROCm's packages say themselves which of them is missing; this names the way there.
function(find_rocm)
  set(rocm "$ENV{ROCM_PATH}")
  if(NOT rocm)
    set(rocm /opt/rocm)
  endif()
  find_package(hip CONFIG QUIET HINTS ${rocm} /usr PATH_SUFFIXES lib/cmake/hip lib64/cmake/hip)
  find_package(hipblas CONFIG QUIET HINTS ${rocm} /usr PATH_SUFFIXES lib/cmake/hipblas lib64/cmake/hipblas)
  if(NOT hip_FOUND OR NOT hipblas_FOUND)
    message(FATAL_ERROR "llcuda: LLCUDA_BACKENDS=rocm, but ROCm 6.1 or newer with hipBLAS was not found in ${rocm}. "
      "Install it, or set ROCM_PATH to it, and build again in a new folder.")
  endif()
endfunction()
