module tributary

go 1.26
