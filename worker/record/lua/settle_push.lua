-- Stores the outcome of one try of a push. After the last push of a closed record, starts the
-- record's time to live.
--
-- task          ns:{id}:task    hash        push_<kind> written if the record exists; TTL set
-- events        ns:{id}:events  stream      as the record
-- pushes        ns:pushes       sorted set  <kind>:<id> scored by its next try, or removed
-- open          ns:open         sorted set  read: a closed task is not in it
-- id
-- kind
-- state         JSON
-- retry_s       seconds until the next try, or '' for none
-- record_ttl_s  time to live of the record
-- kinds         all push kinds
-- Returns 1, or 0 when another process has settled the push meanwhile.
local task, events, pushes, open = unpack(KEYS)
local id, kind, state, retry_s, record_ttl_s = unpack(ARGV)
local kinds = {unpack(ARGV, 6)}
local member = kind .. ':' .. id
if not redis.call('ZSCORE', pushes, member) then return 0 end
if redis.pcall('HEXISTS', task, 'status') == 1 then
  redis.call('HSET', task, 'push_' .. kind, state)
end
if retry_s ~= '' then
  redis.call('ZADD', pushes, 'XX', stamp(now_s() + retry_s), member)
  return 1
end
redis.call('ZREM', pushes, member)
if redis.call('ZSCORE', open, id) then return 1 end
for _, other in ipairs(kinds) do
  if redis.call('ZSCORE', pushes, other .. ':' .. id) then return 1 end
end
redis.call('EXPIRE', task, record_ttl_s)
redis.call('EXPIRE', events, record_ttl_s)
return 1
