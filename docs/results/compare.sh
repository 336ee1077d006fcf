#!/bin/sh
# The first comparison of all methods: the table and the figure in this folder come from it.
# Started again it goes on where it was stopped. About 35 minutes on two cores of an AMD EPYC.
#
#     docs/results/compare.sh FOLDER
set -e
exec splitlab compare --output "${1:?name a folder for the runs}" \
    --ratio 0.1 --seeds 3 --budget bytes=30MB \
    --plugin none \
    --plugin adc \
    --plugin adc:ratio=0.1,alloc=fifth \
    --plugin adc-batch-merge \
    --plugin adc-token-select \
    --plugin adc:ratio=0.4+quantize:bits=8 \
    --plugin evit \
    --plugin tome \
    --plugin random-tokens \
    --plugin grid-pool \
    --plugin tsflora \
    --plugin topk \
    --plugin randtopk \
    --plugin quantize \
    --plugin cast:dtype=fp8_e4m3 \
    --plugin aqsgd \
    --plugin fedlite \
    --plugin sl-acc \
    --plugin sl-fac \
    --plugin splitfc \
    --plugin fft-lowpass:ratio=0.1,block=centred \
    --plugin powersgd \
    --plugin powersgd:ratio=0.1,svd=true \
    --plugin nsc-sl \
    --plugin c3sl \
    --plugin c3sl:ratio=0.1,keys=unitary \
    --plugin bottlenet:ratio=0.1,variant=adcrepo \
    --plugin bottlenet:ratio=0.1,variant=fair \
    --plugin zstd
