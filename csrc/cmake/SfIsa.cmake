# sf_add_isa_variants(target source...): each source is compiled once per instruction set, SF_ISA naming the namespace,
# and linked into target, which gets SF_HAVE_<LEVEL> for every level built.
#
# These sources may use raw pointers, plain loops and anonymous namespaces only: anything with weak linkage (a std::
# template, an inline function with external linkage) would be emitted once per level and the linker would keep one copy
# for all, perhaps one that an older CPU cannot run. tests/test_build.py looks at the objects.
function(sf_add_isa_variants target)
  set(levels baseline)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64" AND NOT MSVC)
    list(APPEND levels avx2 avx512)
  endif()
  set(flags_avx2 -mavx2 -mfma -mf16c)
  set(flags_avx512 ${flags_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    list(APPEND flags_avx512 -Wno-maybe-uninitialized -Wno-uninitialized) # GCC 12 warns of its own _mm512_undefined_pd
  endif()
  foreach(isa IN LISTS levels)
    add_library(${target}_${isa} OBJECT ${ARGN})
    target_include_directories(${target}_${isa} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/csrc)
    target_compile_definitions(${target}_${isa} PRIVATE SF_ISA=${isa})
    target_compile_options(${target}_${isa} PRIVATE ${sf_cxx_flags} ${flags_${isa}})
    string(TOUPPER ${isa} ISA)
    target_compile_definitions(${target} PUBLIC SF_HAVE_${ISA})
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${target}_${isa}>)
  endforeach()
endfunction()
